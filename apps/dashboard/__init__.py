"""A browser's view of finished artifacts: what fetch, extract, train, interpret and cluster left on disk, read only."""
