import pytest

from lightrft.commands.evaluate import sampling_bar


@pytest.mark.parametrize("visible", [True, False])
def test_the_bar_of_an_evaluation_is_shown_where_log_progress_says_so(capsys, visible):
    with sampling_bar(visible=visible) as told:
        told(3, 3)
    assert ("sampling" in capsys.readouterr().err) is visible
