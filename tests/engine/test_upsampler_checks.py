"""An upsampler that is named, or given options, and would have no effect."""

import pytest
from lda_aqu.engine import check_upsamplers_are_used, load_config
from lda_aqu.errors import InputError
from paths import ROOT

SMALL = ROOT / "configs" / "Small"
MASK_RCNN = SMALL / "mask_rcnn_R_18_FPN_dsb2018_lda_aqu.yaml"
UPERNET = SMALL / "upernet_R_18_camvid_lda_aqu.yaml"


def check(file, *opts: str) -> None:
    opts = [*opts, "MODEL.DEVICE", "cpu"]
    check_upsamplers_are_used(load_config(str(file), opts), str(file), opts)


@pytest.mark.parametrize(
    "file, opts, message",
    [
        (MASK_RCNN, "ROI_MASK_HEAD.UPSAMPLER CARAFE", "what does is UpsamplerMaskRCNNConvHead"),
        (MASK_RCNN, "SEM_SEG_HEAD.UPSAMPLER CARAFE", "what does is UpsamplerSemSegFPNHead"),
        (UPERNET, "FPN.UPSAMPLER CARAFE", "with MODEL.BACKBONE.NAME 'build_resnet_backbone'"),
        (MASK_RCNN, "FPN.UPSAMPLER LDAAQUStar MODEL.LDA_AQU.OFFSET_RANGE 5", "LDAAQUStar$"),
        (
            MASK_RCNN,
            "FPN.UPSAMPLER LDAAQU MODEL.BACKBONE.NAME build_resnet_fpn_backbone",
            "MODEL.FPN.UPSAMPLER 'LDAAQU' has no effect",
        ),
    ],
)
def test_upsamplers_that_would_have_no_effect(file, opts, message):
    with pytest.raises(InputError, match=message):
        check(file, *f"MODEL.{opts}".split())


@pytest.mark.parametrize("masks", [True, False])
def test_a_part_that_uses_no_upsampler_in_a_file(tmp_path, masks):
    """Unless the model does not have the part: the file may be the base of another."""
    file = tmp_path / "config.yaml"
    file.write_text(
        f'_BASE_: "{MASK_RCNN}"\n'
        f"MODEL: {{MASK_ON: {masks}, ROI_MASK_HEAD: {{UPSAMPLER: CARAFE}}}}\n"
    )
    if masks:
        with pytest.raises(InputError, match="MODEL.ROI_MASK_HEAD.UPSAMPLER 'CARAFE' has no eff"):
            check(file)
        check(file, "MODEL.ROI_MASK_HEAD.NAME", "UpsamplerMaskRCNNConvHead")
    else:
        check(file)


@pytest.mark.parametrize(
    "opts",
    [
        ["MODEL.FPN.UPSAMPLER", "CARAFE", "MODEL.CARAFE.KERNEL_SIZE", "3"],
        ["MODEL.BACKBONE.NAME", "build_resnet_fpn_backbone"],  # in the place of the file's
    ],
)
def test_what_has_an_effect(opts):
    check(MASK_RCNN, *opts)


@pytest.mark.parametrize("recipe", sorted(SMALL.glob("[!B]*.yaml")), ids=lambda path: path.stem)
def test_the_config_that_a_run_of_a_recipe_writes(recipe, tmp_path):
    """It has all keys, of parts that the model does not have as well."""
    written = tmp_path / "config.yaml"
    written.write_text(load_config(str(recipe), ["MODEL.DEVICE", "cpu"]).dump())
    check(written)
