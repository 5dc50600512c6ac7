"""Hops of the mesh, known by the mesh token."""

from __future__ import annotations

import re
from dataclasses import dataclass
from hmac import compare_digest

from deadlinemesh.deadline import DeadlineContext
from deadlinemesh.errors import Unauthenticated

__all__ = ["IDENTITY", "Identity", "MeshPeers", "checked_token", "identity_of", "identity_value"]

IDENTITY = "mesh-identity"
"""Header: the caller and the owner of the call, as
`token=SECRET;tenant=ID;tier=NAME;run=ID;trace=ID`.

The token is the secret that peers of the mesh share. A receiver believes the rest because of it. It
is one header, the same for a whole run, because each header costs every hop.
"""

MOST_REMEMBERED = 4096
"""Identities that are remembered."""

LONGEST_REMEMBERED = 512
"""Characters of an identity header that is remembered."""

_IDENTITY = re.compile(r"token=([^;]*);tenant=([^;]*);tier=([^;]*);run=([^;]*);trace=([0-9a-f]{32})?")


@dataclass(frozen=True, slots=True)
class Identity:
    """The caller and the owner of a call. An empty string stands for a part that was not sent."""

    mesh_token: bytes
    tenant_id: str
    tier: str
    run_id: str
    trace_id: str


def identity_value(context: DeadlineContext, mesh_token: str) -> str:
    """The identity header for a call made under `context`."""
    return (
        f"token={mesh_token};tenant={context.tenant_id};tier={context.tier};run={context.run_id}"
        f";trace={context.trace_id}"
    )


_NOBODY = Identity(b"", "", "", "", "")


def identity_of(value: str) -> Identity:
    """Decode an identity header. An invalid one gives an identity of empty strings."""
    match = _IDENTITY.fullmatch(value)
    if not match:
        return _NOBODY
    token, *whose = match.groups("")
    return Identity(token.encode("utf-8", "surrogatepass"), *whose)  # compared only


def checked_token(mesh_token: str) -> str:
    """Return `mesh_token`. Raises ValueError if it cannot be part of an identity header."""
    if not mesh_token or ";" in mesh_token or not (mesh_token.isascii() and mesh_token.isprintable()):
        raise ValueError(
            "the mesh token tells a peer from a stranger: it must be printable ASCII without `;`, and not empty"
        )
    return mesh_token


class MeshPeers:
    """The peers of one hop: all that know the mesh token."""

    def __init__(self, hop: str, mesh_token: str) -> None:
        self._hop = hop
        self._token = checked_token(mesh_token).encode()
        self.believed: dict[str, Identity] = {}
        """Identities believed lately, by their header. All calls of one run carry the same."""

    def identify(self, header: str) -> Identity:
        """The identity in a header. Raises Unauthenticated for one without the token."""
        return self.believed.get(header) or self._introduced(header)

    def _introduced(self, header: str) -> Identity:
        identity = identity_of(header)
        if not compare_digest(identity.mesh_token, self._token):
            raise Unauthenticated(
                f"{self._hop} is internal: `{IDENTITY}` must begin with the mesh's token; clients call the orchestrator",
                hop=self._hop,
            )
        if len(header) <= LONGEST_REMEMBERED:
            if len(self.believed) >= MOST_REMEMBERED:
                self.believed.clear()
            self.believed[header] = identity
        return identity
