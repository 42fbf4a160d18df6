"""What a child process may have of its parent's environment: what programs need to run, and no secrets."""

from __future__ import annotations

from collections.abc import Collection, Mapping

NAMES = frozenset(
    [
        *(
            "PATH",
            "HOME",
            "USER",
            "LOGNAME",
            "SHELL",
            "PWD",
            "TERM",
            "COLUMNS",
            "TZ",
            "TMPDIR",
            "TEMP",
            "TMP",
        ),
        *("LANG", "LANGUAGE", "VIRTUAL_ENV", "LD_LIBRARY_PATH", "LD_PRELOAD", "SYSTEMROOT"),
        *("HF_HOME", "HF_HUB_CACHE", "HF_DATASETS_CACHE", "HF_ASSETS_CACHE", "HF_ENDPOINT"),
        *(
            "HF_HUB_OFFLINE",
            "HF_DATASETS_OFFLINE",
            "HF_HUB_DISABLE_TELEMETRY",
            "HF_HUB_DISABLE_PROGRESS_BARS",
        ),
        *("TRANSFORMERS_CACHE", "TRANSFORMERS_OFFLINE", "TOKENIZERS_PARALLELISM", "NLTK_DATA"),
        *("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY"),
        *("SSL_CERT_FILE", "SSL_CERT_DIR", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE"),
        *("RANK", "LOCAL_RANK", "WORLD_SIZE", "LIGHTRFT_CACHE", "LIGHTRFT_DATA", "LIGHTRFT_TRACEBACK"),
    ]
)
"""Variables that are passed on, in upper case: programs know proxies in both cases."""
BEGINNINGS = (
    *("LC_", "PYTHON", "CONDA_", "DYLD_", "XDG_"),
    *("OMP_", "KMP_", "MKL_", "OPENBLAS_", "NUMEXPR_", "BLIS_"),
    *("TORCH", "PYTORCH_", "CUDA_", "NVIDIA_", "HIP_", "ROCR_", "HSA_", "ASCEND_", "ZE_"),
)
"""Beginnings of variables that are passed on."""


def passed_on(variables: Mapping[str, str], named: Collection[str] = ()) -> dict[str, str]:
    """The variables that a child process gets; `named`: what a setting adds."""
    return {
        name: value
        for name, value in variables.items()
        if name in named or name.upper() in NAMES or name.startswith(BEGINNINGS)
    }
