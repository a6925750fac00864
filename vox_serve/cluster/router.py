"""Sends the turns of a conversation to the replica that has it; Ray's own routing otherwise.

Ray copies this module's classes to wherever requests are routed, so it imports nothing of
vox_serve.
"""

from __future__ import annotations

import random

from ray.serve.experimental.consistent_hash_router import ConsistentHashRouter
from ray.serve.request_router import PendingRequest, RunningReplica


class TurnRouter(ConsistentHashRouter):  # type: ignore[misc, unused-ignore]  # untyped without ray
    """A session goes to its replica by consistent hashing, or to the next one if that is full.

    Other requests go to the one of two random replicas that has fewer open requests, as in Ray's
    default router.
    """

    async def choose_replicas(
        self,
        candidate_replicas: list[RunningReplica],
        pending_request: PendingRequest | None = None,
    ) -> list[list[RunningReplica]]:
        if pending_request is None or pending_request.metadata.session_id or not candidate_replicas:
            found: list[list[RunningReplica]] = await super().choose_replicas(
                candidate_replicas, pending_request
            )
            return found
        pending_request.routing_context.should_backoff = True
        return [random.sample(candidate_replicas, min(2, len(candidate_replicas)))]
