"""μOmni. `from omni import OmniModel; OmniModel.load(path).chat([{"role": "user", "content": "hi"}])`"""


def __getattr__(name: str):
    """`OmniModel` is imported when it is asked for: who needs one module of the package loads no more."""
    if name == "OmniModel":
        from omni.chat import OmniModel
        return OmniModel
    raise AttributeError(f"module 'omni' has no attribute {name!r}")
