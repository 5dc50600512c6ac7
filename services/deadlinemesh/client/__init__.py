"""The Python client. Needs the package's base requirements only.

    async with DeadlineMesh("localhost:50051", api_key="…") as mesh:
        async for event in mesh.run("What is due today?", deadline=20.0):
            print(event.text.text, end="")

    mesh.py       `DeadlineMesh`
    address.py    loopback addresses: by default, these alone are called in plain text

Its methods raise the errors of `deadlinemesh.errors`.
"""

from deadlinemesh.client.mesh import DeadlineMesh

__all__ = ["DeadlineMesh"]
