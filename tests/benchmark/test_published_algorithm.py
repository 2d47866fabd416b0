import oracle
import pytest
import torch
from lda_aqu.benchmark.published_algorithm import PublishedLDAAQU

CASES = [
    # channels, input size, output size, options
    (8, (5, 3), (10, 6), {}),
    (16, (3, 5), (7, 11), {"num_heads": 2, "num_groups": 4, "kernel_size": 5}),
    (12, (1, 4), (2, 8), {"reduction": 2, "num_groups": 3, "num_heads": 3}),
    (8, (3, 3), (1, 5), {"position_bias": False, "offset_kernel_size": 1, "offset_range": 2.5}),
]


@pytest.mark.parametrize("channels, input_size, output_size, options", CASES)
def test_matches_the_loops(channels, input_size, output_size, options):
    torch.manual_seed(0)
    module = PublishedLDAAQU(channels, **options).double()
    for parameter in module.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    x = torch.randn(2, channels, *input_size, dtype=torch.float64)
    expected = oracle.lda_aqu(
        x.numpy(),
        {key: value.numpy() for key, value in module.state_dict().items()},
        output_size,
        options.get("num_heads", 1),
        options.get("num_groups", 2),
        options.get("offset_range", 11.0),
    )
    with torch.no_grad():
        output = module(x, output_size)
    torch.testing.assert_close(output, torch.from_numpy(expected), rtol=1e-9, atol=1e-11)
