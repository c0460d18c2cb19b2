"""Generated from protos/preprocessor/v1 by `make proto`; `make verify` checks that it is current."""
