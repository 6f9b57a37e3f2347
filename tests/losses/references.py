"""The formulas again, in float64 numpy, one image and one row at a time where that is the plainer way."""

from collections.abc import Callable

import numpy as np


def log_softmax(x: np.ndarray) -> np.ndarray:
  x = x - x.max(axis=-1, keepdims=True)
  return x - np.log(np.exp(x).sum(axis=-1, keepdims=True))


def softmax(x: np.ndarray) -> np.ndarray:
  return np.exp(log_softmax(x))


def cross_entropy(logits, labels, smoothing=0.0):
  target = np.eye(logits.shape[-1])[labels] if labels.ndim == 1 else labels
  target = target * (1 - smoothing) + smoothing / logits.shape[-1]
  return -(target * log_softmax(logits)).sum(-1)


def soft_kd(student, teacher, temperature=4.0):
  p, q = softmax(teacher / temperature), softmax(student / temperature)
  return temperature**2 * np.sum(p * np.log(p / q), axis=-1)


def hard_kd(student, teacher):
  return -np.array([log_softmax(s)[np.argmax(t)] for s, t in zip(student, teacher, strict=True)])


def cosines(x, y):
  return (x @ y.T) / np.outer(np.linalg.norm(x, axis=1), np.linalg.norm(y, axis=1))


def token_cosine(student, teacher, metric="cosine"):
  if metric == "mse":
    return np.array([np.mean((s - t) ** 2) for s, t in zip(student, teacher, strict=True)])
  return np.array([1 - np.diag(cosines(s, t)).mean() for s, t in zip(student, teacher, strict=True)])


def resize_grid(x, grid):
  """Samples the source at half-pixel centres, coordinates clamped to the picture."""
  rows, columns = x.shape[1:3]
  out = np.zeros((x.shape[0], *grid, x.shape[3]))
  for i in range(grid[0]):
    for j in range(grid[1]):
      r = np.clip((i + 0.5) * rows / grid[0] - 0.5, 0, rows - 1)
      c = np.clip((j + 0.5) * columns / grid[1] - 0.5, 0, columns - 1)
      top, left = int(r), int(c)
      bottom, right = min(top + 1, rows - 1), min(left + 1, columns - 1)
      fr, fc = r - top, c - left
      upper = (1 - fc) * x[:, top, left] + fc * x[:, top, right]
      lower = (1 - fc) * x[:, bottom, left] + fc * x[:, bottom, right]
      out[:, i, j] = (1 - fr) * upper + fr * lower
  return out


def correlation(
  student, teacher, temperature=0.1, direction="student||teacher", keep_diagonal=False, metric="kl"
):
  """One pair of matrices [n d], [n e]."""
  ours, theirs = cosines(student, student), cosines(teacher, teacher)
  if metric == "frobenius":
    return np.linalg.norm(ours - theirs) / np.linalg.norm(theirs)
  rows = []
  for i in range(len(ours)):
    others = [j for j in range(len(ours)) if keep_diagonal or j != i]
    p, q = softmax(ours[i, others] / temperature), softmax(theirs[i, others] / temperature)
    if direction == "teacher||student":
      p, q = q, p
    rows.append(np.sum(p * np.log(p / q)))
  return np.mean(rows)


def median_squared_distance(x):
  n = len(x)
  return np.median([np.sum((x[i] - x[j]) ** 2) for i in range(n) for j in range(i + 1, n)])


def kernel_matrix(x, kernel, sigma2=None):
  if kernel == "linear":
    return x @ x.T
  sigma2 = median_squared_distance(x) if sigma2 is None else sigma2
  squared = ((x[:, None] - x[None]) ** 2).sum(-1)
  return np.exp(-squared / (2 * sigma2))


def hsic(k, l_, debiased):
  """Unbiased: equation 5 of Song et al., JMLR 2012 (no U-centring). Biased: tr(KHLH)."""
  n = len(k)
  if not debiased:
    h = np.eye(n) - 1 / n
    return np.trace(k @ h @ l_ @ h)
  k, l_ = k - np.diag(np.diag(k)), l_ - np.diag(np.diag(l_))
  sums = k.sum() * l_.sum() / ((n - 1) * (n - 2)) - 2 * (k.sum(0) @ l_.sum(0)) / (n - 2)
  return (np.trace(k @ l_) + sums) / (n * (n - 3))


def cka(x, y, kernel="linear", debiased=True, sigma2=(None, None)):
  x, y = x - x.mean(0), y - y.mean(0)
  k, l_ = kernel_matrix(x, kernel, sigma2[0]), kernel_matrix(y, kernel, sigma2[1])
  return hsic(k, l_, debiased) / np.sqrt(hsic(k, k, debiased) * hsic(l_, l_, debiased))


def gram(student, teacher, published=False):
  values = []
  for s, t in zip(student, teacher, strict=True):
    gs, gt = cosines(s, s), cosines(t, t)
    distance = np.linalg.norm(gs - gt)
    values.append(distance / len(s) ** 2 if published else distance**2 / np.linalg.norm(gt) ** 2)
  return np.array(values)


def dino(student, teacher, center, student_temperature=0.1, teacher_temperature=0.04):
  total, pairs = 0.0, 0
  for i, t in enumerate(teacher):
    for j, s in enumerate(student):
      if i != j:
        p = softmax((t - center) / teacher_temperature)
        total, pairs = total - (p * log_softmax(s / student_temperature)).sum(-1), pairs + 1
  return total / pairs


def kl(p, q):
  return np.sum(p * np.log(p / q), axis=-1)


def dkd(student, teacher, labels, alpha=1.0, beta=8.0, temperature=4.0):
  values = []
  for s, t, y in zip(student, teacher, labels, strict=True):
    q, p = softmax(s / temperature), softmax(t / temperature)
    target = kl(np.array([p[y], 1 - p[y]]), np.array([q[y], 1 - q[y]]))
    p, q = np.delete(p, y), np.delete(q, y)
    values.append(temperature**2 * (alpha * target + beta * kl(p / p.sum(), q / q.sum())))
  return np.array(values)


def dist(student, teacher, beta=1.0, gamma=1.0, temperature=1.0):
  p, q = softmax(teacher / temperature), softmax(student / temperature)
  inter = 1 - np.mean([np.corrcoef(a, b)[0, 1] for a, b in zip(p, q, strict=True)])
  intra = 1 - np.mean([np.corrcoef(a, b)[0, 1] for a, b in zip(p.T, q.T, strict=True)])
  return temperature**2 * (beta * inter + gamma * intra)


def ofa(student, teacher, labels, epsilon=1.0, temperature=1.0):
  mask = np.eye(student.shape[-1])[labels]
  p, log_q = softmax(teacher / temperature), log_softmax(student / temperature)
  return np.sum(-((p + mask) ** epsilon - mask) * log_q, axis=-1)


def huber(x):
  return np.where(np.abs(x) < 1, 0.5 * x**2, np.abs(x) - 0.5)


def rkd_distances(x):
  d = np.array([[np.linalg.norm(a - b) for b in x] for a in x])
  return d / d[d > 0].mean()


def rkd_angles(x):
  n = len(x)
  angles = np.zeros((n, n, n))
  for i, j, k in np.ndindex(n, n, n):
    if i not in (j, k):
      a, b = x[j] - x[i], x[k] - x[i]
      angles[i, j, k] = a @ b / (np.linalg.norm(a) * np.linalg.norm(b))
  return angles


def rkd(student, teacher, distance_weight=25.0, angle_weight=50.0):
  distances = huber(rkd_distances(student) - rkd_distances(teacher)).mean()
  return distance_weight * distances + angle_weight * huber(rkd_angles(student) - rkd_angles(teacher)).mean()


def attention_transfer(student, teacher):
  values = []
  for s, t in zip(student, teacher, strict=True):
    ours, theirs = (s**2).mean(-1), (t**2).mean(-1)
    values.append(np.mean((ours / np.linalg.norm(ours) - theirs / np.linalg.norm(theirs)) ** 2))
  return np.array(values)


def similarity_preserving(student, teacher):
  total, n = 0.0, len(student)
  for i in range(n):
    ours, theirs = (np.array([np.sum(x[i] * x[j]) for j in range(n)]) for x in (student, teacher))
    total += np.sum((ours / np.linalg.norm(ours) - theirs / np.linalg.norm(theirs)) ** 2)
  return total / n**2


def attention_distance(attn, grid, special_tokens=0):
  """[b h n n] -> [b h]; every row has weight on patches."""
  positions = [(r, c) for r in range(grid[0]) for c in range(grid[1])]
  total = np.zeros(attn.shape[:2])
  for i, (r, c) in enumerate(positions):
    row = attn[:, :, special_tokens + i, special_tokens:]
    lengths = np.array([np.hypot(r - a, c - b) for a, b in positions])
    total += (row * lengths).sum(-1) / row.sum(-1)
  return total / len(positions)


def locality(attn, target, grid, special_tokens=0, relative=False):
  uniform = attention_distance(np.ones((1, 1, *attn.shape[2:])), grid, special_tokens)[0, 0]
  distance = attention_distance(attn, grid, special_tokens).mean(1)
  return (distance / (uniform if relative else 1.0) - target) ** 2


def numeric_gradient(f: Callable[[np.ndarray], float], x: np.ndarray, step: float = 1e-5) -> np.ndarray:
  """Central differences in float64."""
  gradient = np.zeros_like(x)
  for index in np.ndindex(x.shape):
    shift = np.zeros_like(x)
    shift[index] = step
    gradient[index] = (f(x + shift) - f(x - shift)) / (2 * step)
  return gradient
