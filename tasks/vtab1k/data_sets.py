"""The 19 data sets of VTAB-1k in the order of the paper's table: group, classes, test pictures, published accuracy."""

from typing import NamedTuple

GROUPS = ("natural", "specialized", "structured")

TRAINING_COUNTS = {"train800": 800, "val200": 200, "train800val200": 1000}  # of every data set


class DataSet(NamedTuple):
    """One column of the table.

    Attributes:
        title: as the paper calls it.
        group: one of `GROUPS`.
        classes: labels are 0 to classes - 1.
        test_counts: pictures of the test list; two where archives differ.
        published: test accuracy in per cent, LLaMA-Adapter (arXiv 2303.16199), ViT-B/16 of ImageNet-21k.
    """

    title: str
    group: str
    classes: int
    test_counts: tuple[int, ...]
    published: float


# By the name of the folder that the common archive has them in.
DATA_SETS = {
    "cifar": DataSet("CIFAR-100", "natural", 100, (10000,), 82.2),
    "caltech101": DataSet("Caltech101", "natural", 102, (6084, 6085), 92.4),  # TFDS; the common archive
    "dtd": DataSet("DTD", "natural", 47, (1880,), 70.3),
    "oxford_flowers102": DataSet("Flowers102", "natural", 102, (6149,), 98.4),
    "oxford_iiit_pet": DataSet("Pets", "natural", 37, (3669,), 89.8),
    "svhn": DataSet("SVHN", "natural", 10, (26032,), 84.9),
    "sun397": DataSet("SUN397", "natural", 397, (21750,), 54.3),
    "patch_camelyon": DataSet("Camelyon", "specialized", 2, (32768,), 83.6),
    "eurosat": DataSet("EuroSAT", "specialized", 10, (5400,), 95.3),
    "resisc45": DataSet("Resisc45", "specialized", 45, (6300,), 85.0),
    "diabetic_retinopathy": DataSet("Retinopathy", "specialized", 5, (42670,), 73.8),
    "clevr_count": DataSet("Clevr-count", "structured", 8, (15000,), 69.3),
    "clevr_dist": DataSet("Clevr-dist", "structured", 6, (15000,), 60.2),
    "dmlab": DataSet("DMLab", "structured", 6, (22735,), 51.1),
    "kitti": DataSet("KITTI", "structured", 4, (711,), 79.7),
    "dsprites_loc": DataSet("dSpr-loc", "structured", 16, (73728,), 80.7),
    "dsprites_ori": DataSet("dSpr-ori", "structured", 16, (73728,), 49.0),
    "smallnorb_azi": DataSet("sNORB-azim", "structured", 18, (12150,), 30.6),
    "smallnorb_ele": DataSet("sNORB-elev", "structured", 9, (12150,), 33.6),
}

# Means of the groups as the paper prints them, in per cent, in the order of `GROUPS`; they were made of accuracies
# before rounding, so those of the column above differ by up to 0.03.
PUBLISHED_MEANS = {
    "zero-init*": (81.74, 84.43, 56.75),  # * confirmed in one source only
    "full": (75.88, 83.36, 47.64),
    "Adapter": (70.39, 77.11, 33.43),
    "VPT": (78.48, 82.43, 54.98),
}
