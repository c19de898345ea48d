"""Show finished artifacts in a browser: what fetch, extract, train, interpret and cluster left on disk, read only."""
