"""What a file is, judged by its first bytes; its name is never trusted."""

from __future__ import annotations

from pathlib import Path

from jaxkd.errors import UserError, one_line

AGAIN = "download or copy it again"
MAX_HEADER = 100_000_000  # bytes; the safetensors library refuses longer headers too


def weights_format(path: Path) -> str:
  """`safetensors` or `torch` (a zip, or the pickles torch wrote before version 1.6).

  Raises:
    UserError: unreadable, empty, too short to tell, a web page, a git-lfs pointer, or something else.
  """
  try:
    with open(path, "rb") as f:
      head = f.read(512)
  except OSError as e:
    raise UserError(f"cannot read {path}: {e.strerror}", "check the path and its permissions") from e
  text = head.removeprefix(b"\xef\xbb\xbf").lstrip()
  if text.startswith(b"<"):
    raise _foreign(
      path, text, "the download gave a web page (a login or an error), not the file; fetch it again"
    )
  if text.startswith(b"version https://git-lfs"):
    raise _foreign(path, text, "this is a git-lfs pointer; run `git lfs pull`, or download the file itself")
  if head[8:9] == b"{" and int.from_bytes(head[:8], "little") <= MAX_HEADER:
    return "safetensors"
  if head.startswith(b"PK") or (head[:1] == b"\x80" and head[1:2] in (b"\x02", b"\x03", b"\x04", b"\x05")):
    return "torch"
  if len(head) < 9 or path.suffix == ".safetensors":
    raise incomplete(path, "a safetensors header")
  raise _foreign(
    path, text, "give a .safetensors file, or one written by torch.save(model.state_dict(), path)"
  )


def incomplete(path: Path, expected: str) -> UserError:
  """The error for a file that ends early or is damaged: its size and what should have been there."""
  size = path.stat().st_size
  return UserError(f"{path}: file is incomplete: {size:,} bytes, expected {expected}", AGAIN)


def _foreign(path: Path, head: bytes, hint: str) -> UserError:
  word = (head.split(maxsplit=1) or [head])[0][:20]
  begins = (
    one_line(word.decode()) if word.isascii() and word.decode().isprintable() else f"0x{head[:8].hex()}"
  )
  return UserError(f"{path}: not a weights file (begins with {begins})", hint)
