"""Pure tools on Kubernetes objects: where a value stands, what differs, how much it is, and what a person wrote of it.

They know no network, no clock and no other part of this package; handlers and agents decide with them. Objects are plain JSON and
are never changed in place.
"""

from ipe_events.objects import paths
from ipe_events.objects.diff import LIST_KEYS, Difference, diff, to_json_patch
from ipe_events.objects.paths import Item, PathError, Selector
from ipe_events.objects.prune import prune
from ipe_events.objects.quantity import Quantity, QuantityError, same_quantity

__all__ = [
    "LIST_KEYS",
    "Difference",
    "Item",
    "PathError",
    "Quantity",
    "QuantityError",
    "Selector",
    "diff",
    "paths",
    "prune",
    "same_quantity",
    "to_json_patch",
]
