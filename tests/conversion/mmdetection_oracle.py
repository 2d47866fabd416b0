"""What mmdetection 2.x computes with a published Faster R-CNN, written down apart from Detectron2.

The backbone is torchvision's ResNet, the upsampler plain loops; the rest is in the terms of
mmdetection's documentation and its published names. Everything is in float64.
"""

import math

import oracle
import torch
import torchvision
from torch import Tensor
from torch.nn import functional as F
from torchvision.ops import nms, roi_align


class PublishedFasterRCNN:
    """Faster R-CNN R50 with weights by their published names."""

    def __init__(self, weights: dict[str, Tensor]) -> None:
        self.weights = {
            name: value.double() if value.is_floating_point() else value
            for name, value in weights.items()
        }

    def part(self, prefix: str) -> dict[str, Tensor]:
        return {
            name.removeprefix(prefix): value
            for name, value in self.weights.items()
            if name.startswith(prefix)
        }

    def convolve(self, x: Tensor, name: str, **options: int) -> Tensor:
        return F.conv2d(x, self.weights[f"{name}.weight"], self.weights[f"{name}.bias"], **options)

    def linear(self, x: Tensor, name: str) -> Tensor:
        return F.linear(x, self.weights[f"{name}.weight"], self.weights[f"{name}.bias"])

    def preprocess(self, image: Tensor) -> Tensor:
        """RGB image (3, H, W), 0 to 255, to (1, 3, ...) padded to multiples of 64."""
        mean = torch.tensor([123.675, 116.28, 103.53], dtype=torch.float64)[:, None, None]
        std = torch.tensor([58.395, 57.12, 57.375], dtype=torch.float64)[:, None, None]
        height, width = image.shape[1:]
        normalized = (image.double() - mean) / std
        return F.pad(normalized, (0, -width % 64, 0, -height % 64))[None]

    def backbone(self, x: Tensor) -> list[Tensor]:
        resnet = torchvision.models.resnet50(weights=None)
        resnet.fc = torch.nn.Identity()
        resnet.load_state_dict(self.part("backbone."))
        resnet.double().eval()
        x = resnet.maxpool(resnet.relu(resnet.bn1(resnet.conv1(x))))
        maps = []
        for stage in (resnet.layer1, resnet.layer2, resnet.layer3, resnet.layer4):
            x = stage(x)
            maps.append(x)
        return maps

    def neck(self, maps: list[Tensor]) -> list[Tensor]:
        merged = [self.convolve(x, f"neck.lateral_convs.{i}.conv") for i, x in enumerate(maps)]
        merged.append(self.convolve(maps[-1], "neck.lateral_convs.4.conv", stride=2, padding=1))
        for level in (3, 2, 1, 0):
            state = {k: v.numpy() for k, v in self.part(f"neck.upsample_modules.{level}.").items()}
            coarse = merged[level + 1].numpy()
            size = (2 * coarse.shape[2], 2 * coarse.shape[3])
            upsampled = torch.from_numpy(oracle.lda_aqu(coarse, state, size, 1, 2, 11.0))
            height, width = merged[level].shape[2:]
            merged[level] = merged[level] + upsampled[:, :, :height, :width]
        return [
            self.convolve(x, f"neck.fpn_convs.{i}.conv", padding=1) for i, x in enumerate(merged)
        ]

    def decode(self, boxes: Tensor, deltas: Tensor, size: tuple[int, int]) -> Tensor:
        """Boxes (N, 4) and deltas (N, 4) to boxes in an image of ``size`` (height, width)."""
        limit = math.log(1000 / 16)
        centre = (boxes[:, :2] + boxes[:, 2:]) / 2
        extent = boxes[:, 2:] - boxes[:, :2]
        centre = centre + deltas[:, :2] * extent
        extent = extent * deltas[:, 2:].clamp(-limit, limit).exp()
        decoded = torch.cat([centre - extent / 2, centre + extent / 2], dim=1)
        height, width = size
        bound = torch.tensor([width, height, width, height], dtype=torch.float64)
        return decoded.clamp(min=0).minimum(bound)

    def proposals(self, pyramid: list[Tensor], size: tuple[int, int]) -> Tensor:
        """The 1000 best boxes (N, 4) of all levels."""
        kept_boxes, kept_scores = [], []
        for level, features in enumerate(pyramid):
            stride = 4 * 2**level
            hidden = self.convolve(features, "rpn_head.rpn_conv", padding=1).relu()
            scores = self.convolve(hidden, "rpn_head.rpn_cls")[0].sigmoid()
            deltas = self.convolve(hidden, "rpn_head.rpn_reg")[0]
            anchors, flat_deltas, flat_scores = [], [], []
            for i in range(features.shape[2]):
                for j in range(features.shape[3]):
                    for a, ratio in enumerate((0.5, 1.0, 2.0)):  # height over width
                        w, h = 8 * stride / math.sqrt(ratio), 8 * stride * math.sqrt(ratio)
                        x, y = j * stride, i * stride
                        anchors.append([x - w / 2, y - h / 2, x + w / 2, y + h / 2])
                        flat_deltas.append(deltas[4 * a : 4 * a + 4, i, j])
                        flat_scores.append(scores[a, i, j])
            best = torch.stack(flat_scores).argsort(descending=True)[:1000]
            boxes = self.decode(
                torch.tensor(anchors, dtype=torch.float64)[best],
                torch.stack(flat_deltas)[best],
                size,
            )
            scores = torch.stack(flat_scores)[best]
            solid = ((boxes[:, 2:] - boxes[:, :2]) > 0).all(1)
            boxes, scores = boxes[solid], scores[solid]
            keep = nms(boxes, scores, 0.7)
            kept_boxes.append(boxes[keep])
            kept_scores.append(scores[keep])
        best = torch.cat(kept_scores).argsort(descending=True)[:1000]
        return torch.cat(kept_boxes)[best]

    def pool(self, pyramid: list[Tensor], boxes: Tensor) -> Tensor:
        """Pool (N, C, 7, 7), each box from the level that its size asks for."""
        pooled = boxes.new_zeros(len(boxes), pyramid[0].shape[1], 7, 7)
        for n, box in enumerate(boxes):
            x1, y1, x2, y2 = box.tolist()
            size = math.sqrt((x2 - x1) * (y2 - y1))
            level = min(max(math.floor(math.log2(size / 56 + 1e-6)), 0), 3)
            pooled[n] = roi_align(
                pyramid[level], [box[None]], 7, 1 / (4 * 2**level), sampling_ratio=0, aligned=True
            )[0]
        return pooled

    def detect(self, image: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """RGB image (3, H, W) to boxes (N, 4), scores (N,) and classes (N,), best first."""
        size = (image.shape[1], image.shape[2])
        pyramid = self.neck(self.backbone(self.preprocess(image)))
        proposals = self.proposals(pyramid, size)
        hidden = self.pool(pyramid[:4], proposals).flatten(1)
        for layer in (0, 1):
            hidden = self.linear(hidden, f"roi_head.bbox_head.shared_fcs.{layer}").relu()
        scores = self.linear(hidden, "roi_head.bbox_head.fc_cls").softmax(1)
        deltas = self.linear(hidden, "roi_head.bbox_head.fc_reg")
        deviations = torch.tensor([0.1, 0.1, 0.2, 0.2], dtype=torch.float64)
        found = []
        for k in range(scores.shape[1] - 1):  # the last is the background
            boxes = self.decode(proposals, deltas[:, 4 * k : 4 * k + 4] * deviations, size)
            likely = scores[:, k] > 0.05
            boxes, likely_scores = boxes[likely], scores[likely, k]
            keep = nms(boxes, likely_scores, 0.5)
            labels = torch.full((len(keep),), k)
            found.append((boxes[keep], likely_scores[keep], labels))
        boxes, scores, labels = (torch.cat(parts) for parts in zip(*found, strict=True))
        best = scores.argsort(descending=True)[:100]
        return boxes[best], scores[best], labels[best]
