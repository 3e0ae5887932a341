"""The token of the Hugging Face hub, in its library's own store. Imports that library: for a pool thread."""

from __future__ import annotations

from qlora_engine.errors import EngineError


def is_kept() -> bool:
    from huggingface_hub import get_token

    return get_token() is not None


def keep(token: str) -> bool:
    """Ask the hub whether it is one, and keep it; True.

    Raises:
        EngineError: the hub does not take it, or cannot be asked.
    """
    from huggingface_hub import login

    try:
        login(token=token, add_to_git_credential=False)
    except Exception as error:  # it raises what its HTTP client raises
        first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise EngineError("hub.token", f"the token was not kept: {first}", "check it at the hub") from error
    return True


def forget() -> bool:
    """False: there is none any more."""
    from huggingface_hub import logout

    logout()
    return is_kept()
