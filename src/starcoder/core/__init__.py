"""What everything stands on: tensors, batches, the compiled core and the machine it runs on."""
