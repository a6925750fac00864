"""Sends the turns of a conversation to the replica that has it; Ray's own routing otherwise.

Ray copies this module's classes to wherever requests are routed, so it imports nothing of
vox_serve.
"""

from __future__ import annotations

import random

from ray.serve.experimental.consistent_hash_router import ConsistentHashRouter
from ray.serve.request_router import PendingRequest, RunningReplica

SEPARATOR = "|"
"""Between a replica's id, which may be empty, and a conversation's name, in a session's id."""


class TurnRouter(ConsistentHashRouter):  # type: ignore[misc, unused-ignore]  # untyped without ray
    """A session goes to the replica that it names, or to one by consistent hashing.

    Other requests go to the one of two random replicas that has fewer open requests, as in Ray's
    default router.
    """

    async def choose_replicas(
        self,
        candidate_replicas: list[RunningReplica],
        pending_request: PendingRequest | None = None,
    ) -> list[list[RunningReplica]]:
        session = pending_request.metadata.session_id if pending_request is not None else ""
        if pending_request is None or not candidate_replicas:
            return [candidate_replicas] if candidate_replicas else []
        pending_request.routing_context.should_backoff = True
        if not session:
            return [random.sample(candidate_replicas, min(2, len(candidate_replicas)))]
        replica, _, conversation = session.partition(SEPARATOR)
        for candidate in candidate_replicas:
            if candidate.replica_id.unique_id == replica:
                return [[candidate]]
        found = self._lookup_ranked_replicas(conversation)[:1]
        return [[self._replicas[name]] for name in found if name in self._replicas]
