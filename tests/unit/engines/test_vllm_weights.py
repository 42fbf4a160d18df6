"""What is looked at inside vLLM's models, on modules of torch."""

import pytest
from torch import nn

from lightrft.engines.vllm_weights import check_taken


def test_a_weight_that_was_not_given_is_an_error():
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2, bias=False))
    check_taken(model, {"0.weight", "0.bias", "1.weight"})
    check_taken(model, None)
    with pytest.raises(
        ValueError, match=r"has 2 weights that the trainer's model does not, such as 0.bias, 1.weight"
    ):
        check_taken(model, {"0.weight"})
