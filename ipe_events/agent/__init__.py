"""The agent: serves clusters: collects, acts, answers, reports."""
