"""Show finished artifacts in a browser: what fetch, extract, train, interpret, explain and cluster left on disk."""
