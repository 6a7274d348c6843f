"""What stands in for `ops` under a model, so that it runs step by step: on numpy, or on the core.

With the core's own operations the answer must be the graph's to the bit.
"""

from __future__ import annotations

from types import SimpleNamespace

from starcoder.core import ops
from tests import reference
from tests.helpers import operations
from tests.reference import graph as reference_graph

__all__ = ["ONE_BY_ONE", "SLOW"]

_TWINS = SimpleNamespace(
    linear=lambda x, w, bias=None, **kw: reference.linear(x, w.tensor, bias, **kw),
    embed=lambda ids, w: reference.embed(ids, w.tensor),
    layer_norm=reference.layer_norm,
    rms_norm=reference.rms_norm,
    gated=reference.gated,
    store_kv=reference.store_kv,
    attention=reference.attention,
)
_ACTIVATIONS = {number: name for name, number in ops.ACTIVATIONS.items()}
SLOW = SimpleNamespace(
    ACTIVATIONS=ops.ACTIVATIONS,
    pack=lambda tensor: SimpleNamespace(tensor=tensor, nbytes=tensor.nbytes),
    Graph=lambda: reference_graph.Graph(_TWINS, _ACTIVATIONS),
)
ONE_BY_ONE = SimpleNamespace(
    ACTIVATIONS=ops.ACTIVATIONS,
    pack=ops.pack,
    Graph=lambda: reference_graph.Graph(operations, _ACTIVATIONS),
)
