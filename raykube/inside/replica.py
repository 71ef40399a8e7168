"""One replica of a served model. Imported only where Ray Serve is."""

from __future__ import annotations

import asyncio
from typing import Any

from ray import serve
from starlette.requests import Request
from starlette.responses import Response

from raykube.inside.answers import Predict, as_text, predict_parts, read_instances, reply, size_of
from raykube.inside.serving import open_model
from raykube.inside.tracking import Loader


class Answer(Response):
    """JSON as :func:`raykube.inside.answers.as_text` writes it."""

    media_type = "application/json"

    def render(self, content: Any) -> bytes:
        """Return the body."""
        return content if isinstance(content, bytes) else as_text(content)


class Replica:
    """One replica: holds the model, gathers instances of concurrent requests into batches."""

    def __init__(self, load: Loader, predict: Predict, resolved: str, size: int, wait_s: float) -> None:
        self._predict = predict
        self._resolved = resolved
        self._size = size
        self._model = open_model(resolved, load)
        self._together.set_max_batch_size(size)
        self._together.set_batch_wait_timeout_s(wait_s)

    @serve.batch(batch_size_fn=size_of)  # type: ignore[untyped-decorator] # Ray's has no types
    async def _together(self, parts: list[list[Any]]) -> list[list[Any]]:
        # In a thread, so that requests are still accepted, and health checks answered, meanwhile.
        return await asyncio.to_thread(predict_parts, self._predict, self._model, parts)

    async def _each(self, instances: list[Any]) -> list[Any]:
        """Return the outcome of each instance; many go batch by batch, so that other requests come between."""
        begins = range(0, len(instances), self._size)
        return [one for begin in begins for one in await self._together(instances[begin : begin + self._size])]

    async def __call__(self, request: Request) -> Answer:
        """Answer one HTTP request."""
        if request.method in ("GET", "HEAD"):  # for the latter the server sends no body
            return Answer({"model": self._resolved})
        if request.method != "POST":
            return Answer({"error": f"{request.method} is not known: use GET or POST"}, 405)
        try:
            instances = read_instances(await request.body())
        except ValueError as error:
            return Answer({"error": str(error)}, 400)
        return Answer(*reply(await self._each(instances)))


# Ray's default of 5 requests at once would limit a batch to 5 requests; plans address the deployment by this name.
Model: Any = serve.deployment(name="Model", max_ongoing_requests=100)(Replica)
