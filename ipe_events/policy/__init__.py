"""Policy documents: declare their shape, load and validate them, select those that apply, keep them in KV."""

from ipe_events.policy.model import API_VERSION, Policy, PolicyMetadata, PolicySet, PolicySpec, kinds
from ipe_events.policy.selection import LabelSelector, Part, Requirement, Selection
from ipe_events.policy.store import BUCKET, decode_kv, encode_kv, kv_key, load_file, load_text

__all__ = [
    "API_VERSION",
    "BUCKET",
    "LabelSelector",
    "Part",
    "Policy",
    "PolicyMetadata",
    "PolicySet",
    "PolicySpec",
    "Requirement",
    "Selection",
    "decode_kv",
    "encode_kv",
    "kinds",
    "kv_key",
    "load_file",
    "load_text",
]
