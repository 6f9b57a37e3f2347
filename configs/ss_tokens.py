"""DINOv2 to DeiT by tokens and their correlations.

python -m jaxkd.main --config=configs/ss_tokens.py --workdir=runs/ss_tokens

`views` fixed geometries of each image are in the feature bank; `views=0` runs the teacher live.
"""

from jaxkd import recipes
from jaxkd.config import parse_arg


def get_config(arg=None):
  arg = parse_arg(arg, data="cifar10", smoke=False, teacher="dinov2_vits14", views=4, seed=0)
  terms = recipes.token_terms(arg.smoke, tokens=1.0, relation=0.1)
  return recipes.self_supervised(arg, "ss_tokens", terms, lr=1e-3, epochs=100.0, batch_size=256)
