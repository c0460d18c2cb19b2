"""Arrays as messages of `preprocessor.v1`, for the service and for its callers alike."""
