"""The views of a pair that are made where it is read: what Pillow must make, and captions. The others are made from a few
numbers a sample on the device (data/augmentation/device.py)."""

import numpy as np
from PIL import Image

from data.augmentation.augment import Augment
from data.augmentation.eda import augmented_caption
from data.augmentation.pictures import autoaugmented


def loaded_views(
    augment: Augment, views: tuple[int, int], pair: tuple[np.ndarray, str], names: tuple[int, str, int]
) -> tuple[list[np.ndarray], list[str]]:
    """(the first picture and the further ones that Pillow makes, uint8 [3, H, W] each; the U captions) of a pair of first
    views; `views` = (V, U), names = (seed, key, epoch)."""
    picture, text = pair
    pictures, captions = [picture], [text][: views[1]]
    if views[0] > 1 and augment.by_pillow:
        image = Image.fromarray(picture.transpose(1, 2, 0))
        # the second view's names have no number: as they were drawn when there were two at most
        pictures += [autoaugmented(image, *names, *(view,) * (view > 1)) for view in range(1, views[0])]
    captions += [augmented_caption(augment, text, *names, *(view,) * (view > 1)) for view in range(1, views[1])]
    return pictures, captions
