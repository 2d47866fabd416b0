from lda_aqu.upsamplers import GuidedUpsampler
from torch.nn import functional as F


class Recorder(GuidedUpsampler):
    """Bilinear upsampling that remembers its guide."""

    def forward(self, x, guide):
        self.guide = guide
        return F.interpolate(x, self.guide_size(x, guide), mode="bilinear", align_corners=False)
