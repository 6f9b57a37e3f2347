"""DINOv2 to DeiT by tokens, correlation and CKA over four layers.

python -m jaxkd.main --config=configs/ss_cka.py --workdir=runs/ss_cka

`views` fixed geometries of each image are in the feature bank; `views=0` runs the teacher live.
"""

from jaxkd import recipes
from jaxkd.config import parse_arg


def get_config(arg=None):
  arg = parse_arg(arg, data="cifar10", smoke=False, teacher="dinov2_vits14", views=4, seed=0)
  terms = recipes.layer_terms(arg.smoke, cka={"kind": "cka", "weight": 0.5, "start_epoch": 5.0})
  return recipes.self_supervised(arg, "ss_cka", terms, lr=5e-4, epochs=200.0, batch_size=512)
