"""One Kubernetes API: session, discovery, reflector, index, write; the only package that talks to API servers."""
