"""The hooks of a vox_serve plugin.  This file is the plugin manual.

A plugin is a module that implements some of these hooks with `@vox_serve.hookimpl` and is
named by an entry point of its distribution:

    [project.entry-points.vox_serve]
    my_model = "my_package.plugin"

The module must be light: every command imports it and everything it imports, even
`vox-serve --help`.  Import torch inside `ModelSpec.load`, not at the top.
"""

from __future__ import annotations

from collections.abc import Sequence

import pluggy

from vox_serve.model import CheckpointSpec, ModelSpec
from vox_serve.postprocess import Postprocessor

hookspec = pluggy.HookspecMarker("vox_serve")
hookimpl = pluggy.HookimplMarker("vox_serve")


@hookspec
def vox_serve_models() -> Sequence[ModelSpec]:  # type: ignore[empty-body]  # a specification
    """The kinds of model that this plugin can serve, one ModelSpec each."""


@hookspec
def vox_serve_checkpoints() -> Sequence[CheckpointSpec]:  # type: ignore[empty-body]  # a specification
    """Named checkpoints: each alias can be given to --model."""


@hookspec
def vox_serve_postprocess() -> Sequence[Postprocessor]:  # type: ignore[empty-body]  # a specification
    """Processing that the plugin offers for requests' audio; --postprocess NAME turns it on."""
