"""The CIFAR networks of the recipes: residual networks of He et al. (2016) and a compact transformer.

Use them from the command line with ``--model examples/cifar_resnet.py:resnet20 --weights FILE.safetensors``.
"""

from equidial.recipes import cct, resnet20, resnet56

__all__ = ["cct", "resnet20", "resnet56"]
