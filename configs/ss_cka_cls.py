"""DINOv2 to DeiT by CKA of the cls tokens over the samples of a batch.

python -m jaxkd.main --config=configs/ss_cka_cls.py --workdir=runs/ss_cka_cls

`views` fixed geometries of each image are in the feature bank; `views=0` runs the teacher live.
"""

from jaxkd import recipes
from jaxkd.config import parse_arg


def get_config(arg=None):
  arg = parse_arg(arg, data="cifar10", smoke=False, teacher="dinov2_vits14", views=4, seed=0)
  taps = {"teacher": "dino", "student_taps": recipes.layers(arg.smoke, (8, 9, 10, 11), "cls")}
  terms = {"cka": {"kind": "cka", "over": "samples", "weight": 1.0, **taps}}
  return recipes.self_supervised(arg, "ss_cka_cls", terms, lr=5e-4, epochs=200.0, batch_size=512)
