"""Generated stubs of `protos/deadlinemesh/v1`. Run `make proto` to write them again; never edit them."""
