"""What papers report of the upsamplers. None of it was measured here.

All box APs are of Faster R-CNN with R50-FPN, COCO 2017 val, 12 epochs, in MMDetection.
"""

from dataclasses import dataclass

LDA_AQU_PAPER = "Du et al., LDA-AQU, ACM MM 2024"
FREQFUSION_TABLE = "table of the FreqFusion repository, Chen et al., TPAMI 2024"


@dataclass(frozen=True)
class PublishedResult:
    """The box AP that a paper reports.

    Args:
        upsampler: the upsampler here, NAME or NAME:OPTION=VALUE,...
        name: what the paper calls it.
        box_ap: in percent.
        source: where it is reported.
    """

    upsampler: str
    name: str
    box_ap: float
    source: str


PUBLISHED_RESULTS = (
    PublishedResult("Nearest", "nearest", 37.5, LDA_AQU_PAPER),
    PublishedResult("Deconv", "Deconv", 37.3, FREQFUSION_TABLE),
    PublishedResult("PixelShuffle", "PixelShuffle", 37.5, FREQFUSION_TABLE),
    PublishedResult("CARAFE", "CARAFE", 38.6, LDA_AQU_PAPER),
    PublishedResult("IndexNet", "IndexNet", 37.6, FREQFUSION_TABLE),
    PublishedResult("A2U", "A2U", 37.3, FREQFUSION_TABLE),
    PublishedResult("FADE", "FADE", 38.5, FREQFUSION_TABLE),
    PublishedResult("SAPAB", "SAPA-B", 37.8, FREQFUSION_TABLE),
    PublishedResult(
        "DySample:style=pl,num_groups=8,dynamic_scope=true", "DySample-S+", 38.6, FREQFUSION_TABLE
    ),
    PublishedResult("DySample:dynamic_scope=true", "DySample+", 38.7, LDA_AQU_PAPER),
    PublishedResult("LDAAQUStar", "LDA-AQU*", 38.9, LDA_AQU_PAPER),
    PublishedResult("LDAAQU", "LDA-AQU", 39.2, LDA_AQU_PAPER),
)

PUBLISHED_PARAMETERS = "46.8 M"
"""Of Faster R-CNN with nearest upsampling, from the paper of LDA-AQU."""

ADDED_TO_FASTER_RCNN = {"LDAAQUStar": "0.04 M", "LDAAQU": "0.158 M"}
"""What the upsamplers of the published topology, four, add to them, from the same paper."""

ADDED_TO_PANOPTIC_FPN = {
    "Deconv": "1.8 M",
    "PixelShuffle": "7.1 M",
    "CARAFE": "0.2 M",
    "IndexNet": "6.3 M",
    "A2U": "29.2 K",
    "FADE": "0.1 M",
    "SAPAB": "0.1 M",
    "DySample:style=pl,num_groups=8,dynamic_scope=true": "6.2 K",
    "DySample:dynamic_scope=true": "49.2 K",
}
"""What three add to Panoptic FPN's, from the table of the FreqFusion repository."""
