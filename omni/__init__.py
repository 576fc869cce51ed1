"""μOmni. `from omni import OmniModel; OmniModel.load(path).chat([{"role": "user", "content": "hi"}])`"""


def __getattr__(name: str):
    """Import `OmniModel` on first use, so that importing one module does not load the whole package."""
    if name == "OmniModel":
        from omni.chat import OmniModel
        return OmniModel
    raise AttributeError(f"module 'omni' has no attribute {name!r}")
