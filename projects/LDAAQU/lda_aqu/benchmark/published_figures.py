"""What papers report of the upsamplers. None of it was measured here."""

from typing import NamedTuple

LDA_AQU_PAPER = "Du et al., LDA-AQU, ACM MM 2024"
FREQFUSION_TABLE = "table of the FreqFusion repository, Chen et al., TPAMI 2024"
DLU_TABLE = "table of the DLU repository, Fu et al., ICPR 2024"


class Published(NamedTuple):
    """What papers report of an upsampler, which they call so."""

    name: str
    box_ap: float
    """Of Faster R-CNN with R50-FPN, COCO 2017 val, 12 epochs, in percent."""
    source: str
    """Where the box AP is reported."""
    added: str | None = None
    """Number of upsamplers, and the parameters that they add, see :data:`ADDED`."""


ADDED = (
    f"published: parameters of 4 in Faster R-CNN, which has 46.8 M with nearest ({LDA_AQU_PAPER}), "
    f"or of 3 in Panoptic FPN ({FREQFUSION_TABLE}; of A2U the weights of convolutions alone); of "
    f"DLU the size of 4 in Faster R-CNN, in float32 ({DLU_TABLE})"
)
PUBLISHED_FIGURES = {
    "Nearest": Published("nearest", 37.5, LDA_AQU_PAPER),
    "Deconv": Published("Deconv", 37.3, FREQFUSION_TABLE, "3: 1.8 M"),
    "PixelShuffle": Published("PixelShuffle", 37.5, FREQFUSION_TABLE, "3: 7.1 M"),
    "CARAFE": Published("CARAFE", 38.6, LDA_AQU_PAPER, "3: 0.2 M"),
    "DLU": Published("DLU", 38.6, DLU_TABLE, "4: 0.6 MB"),
    "IndexNet": Published("IndexNet", 37.6, FREQFUSION_TABLE, "3: 6.3 M"),
    "A2U": Published("A2U", 37.3, FREQFUSION_TABLE, "3: 29.2 K"),
    "FADE": Published("FADE", 38.5, FREQFUSION_TABLE, "3: 0.1 M"),
    "FreqFusion": Published("FreqFusion", 39.4, FREQFUSION_TABLE, "3: 0.3 M"),
    "SAPAB": Published("SAPA-B", 37.8, FREQFUSION_TABLE, "3: 0.1 M"),
    "DySample:style=pl,num_groups=8,dynamic_scope=true": Published(
        "DySample-S+", 38.6, FREQFUSION_TABLE, "3: 6.2 K"
    ),
    "DySample:dynamic_scope=true": Published("DySample+", 38.7, LDA_AQU_PAPER, "3: 49.2 K"),
    "LDAAQUStar": Published("LDA-AQU*", 38.9, LDA_AQU_PAPER, "4: 0.04 M"),
    "LDAAQU": Published("LDA-AQU", 39.2, LDA_AQU_PAPER, "4: 0.158 M"),
}
"""By upsampler here, NAME or NAME:OPTION=VALUE,..."""
