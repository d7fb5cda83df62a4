"""DeepLabV3 on MobileNetV2 for the 21 classes of PASCAL VOC.

Use it with ``--model examples/voc_deeplabv3.py:deeplabv3_mobilenet_v2 --weights FILE.safetensors``.
"""

from equidial.recipes import DeepLabV3


def deeplabv3_mobilenet_v2() -> DeepLabV3:
    """Reads images of 513 x 513 pixels (smaller ones padded with grey), scaled to [-1, 1]."""
    return DeepLabV3()
