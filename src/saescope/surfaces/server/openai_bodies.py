"""Bodies of OpenAI's API: what is read from them, and what is refused since nothing does it.

Fields that no server needs to act on (`user`, `metadata`) and unknown ones are ignored. Known
fields that would change the reply, and that saescope does not implement, are refused unless they
have their default value.
"""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from saescope.surfaces.server.problems import Problem
from saescope.surfaces.server.steering_body import SteeringBody

MOST_CHOICES = 16
_Stop = Annotated[list[Annotated[str, Field(min_length=1, max_length=200)]], Field(max_length=16)]
# Fields that would change the reply, and the values that change nothing.
_UNSUPPORTED: dict[str, tuple[Any, ...]] = {
    "tools": (None, []),
    "tool_choice": (None, "none", "auto"),
    "functions": (None, []),
    "function_call": (None, "none", "auto"),
    "response_format": (None, {"type": "text"}),
    "presence_penalty": (None, 0),
    "frequency_penalty": (None, 0),
    "logit_bias": (None, {}),
    "modalities": (None, ["text"]),
    "audio": (None,),
    "prediction": (None,),
    "suffix": (None, ""),
    "echo": (None, False),
    "best_of": (None, 1),
}


class _Body(BaseModel):
    model_config = ConfigDict(extra="allow", allow_inf_nan=False)

    model: str = Field(max_length=300, description="One of /v1/models.")
    temperature: Annotated[float, Field(ge=0, le=100)] | None = Field(
        None, description="0 takes the likeliest token each time. Default: 1, as in OpenAI's API."
    )
    top_p: Annotated[float, Field(gt=0, le=1)] | None = Field(
        None, description="Sample from the likeliest tokens that have this probability together."
    )
    n: Annotated[int, Field(ge=1, le=MOST_CHOICES)] | None = Field(None, description="Replies.")
    seed: Annotated[int, Field(ge=0, lt=2**63)] | None = Field(
        None, description="Equal seeds give equal replies. Default: a random one."
    )
    stop: Annotated[str, Field(min_length=1, max_length=200)] | _Stop | None = Field(
        None, description="Texts that end a reply."
    )
    stream: bool | None = Field(None, description="Send tokens as they are generated.")
    stream_options: dict[str, Any] | None = None
    steering: SteeringBody | None = Field(None, description="Edits while the model runs.")

    @property
    def stops(self) -> tuple[str, ...]:
        """The texts that end a reply."""
        if self.stop is None:
            return ()
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop)

    @property
    def wants_usage(self) -> bool:
        """Whether a stream ends with the number of tokens."""
        return bool((self.stream_options or {}).get("include_usage"))

    def check_supported(self) -> None:
        """Raise Problem for a field that is not implemented and would change the reply."""
        for name, value in (self.model_extra or {}).items():
            if name in _UNSUPPORTED and value not in _UNSUPPORTED[name]:
                raise Problem(400, f"{name} is not supported: leave it out", param=name)


class ContentPart(BaseModel):
    """A part of a message; only text is read."""

    model_config = ConfigDict(extra="allow")

    type: Literal["text"]
    text: str


class MessageBody(BaseModel):
    """One message of a chat."""

    model_config = ConfigDict(extra="allow")

    role: Annotated[str, Field(min_length=1, max_length=40)]
    content: str | list[ContentPart] | None = None


class ChatBody(_Body):
    """Body of /v1/chat/completions."""

    messages: Annotated[list[MessageBody], Field(min_length=1, max_length=2000)]
    max_tokens: Annotated[int, Field(ge=1)] | None = Field(None, description="Default: 256.")
    max_completion_tokens: Annotated[int, Field(ge=1)] | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    chat_template_kwargs: dict[str, Any] | None = Field(
        None, description="`enable_thinking` turns thinking on or off."
    )

    @property
    def thinking(self) -> bool | None:
        """Whether the template is asked to think; None leaves it to the template."""
        wanted = (self.chat_template_kwargs or {}).get("enable_thinking")
        if wanted is not None and not isinstance(wanted, bool):
            path = "chat_template_kwargs.enable_thinking"
            raise Problem(400, f"{path}: true or false, got {wanted!r:.40}", param=path)
        return wanted

    @property
    def most_tokens(self) -> int | None:
        """The largest number of tokens of a reply, if one is given."""
        return self.max_completion_tokens or self.max_tokens

    @property
    def n_logprobs(self) -> int | None:
        """How many of the likeliest tokens are reported beside each; None: no log-probabilities."""
        if not self.logprobs:
            return None
        return self.top_logprobs or 0


_TokenIds = Annotated[list[Annotated[int, Field(ge=0)]], Field(min_length=1)]


class CompletionBody(_Body):
    """Body of /v1/completions."""

    prompt: (
        str
        | Annotated[list[str], Field(min_length=1, max_length=64)]
        | _TokenIds
        | Annotated[list[_TokenIds], Field(min_length=1, max_length=64)]
    )
    max_tokens: Annotated[int, Field(ge=1)] | None = Field(None, description="Default: 16.")
    logprobs: Annotated[int, Field(ge=0, le=20)] | None = None

    @property
    def prompts(self) -> list[str | list[int]]:
        """The prompts: texts or token ids."""
        if isinstance(self.prompt, str):
            return [self.prompt]
        if isinstance(self.prompt[0], int):
            return [[int(token) for token in self.prompt]]
        return list(self.prompt)
