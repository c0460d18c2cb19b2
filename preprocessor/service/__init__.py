"""The pipeline over gRPC: moves bytes, keeps deadlines, tells how it is. No pixels are touched here."""
