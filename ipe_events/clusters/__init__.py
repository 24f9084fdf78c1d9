"""Finding clusters: one module per kind of place that knows some. Each gives ``ClusterSource``s; nothing here connects."""
