"""μOmni. `from omni import OmniModel; OmniModel.load(path).chat([{"role": "user", "content": "hi"}])`"""

import os

# What Apple's MPS lacks is computed on the CPU. PyTorch reads this when it is imported.
os.environ.setdefault("PYTORCH_ENABLE_MPS_FALLBACK", "1")


def __getattr__(name: str):
    """Import `OmniModel` on first use, so that importing one module does not load the whole package."""
    if name == "OmniModel":
        from omni.chat import OmniModel
        return OmniModel
    raise AttributeError(f"module 'omni' has no attribute {name!r}")
