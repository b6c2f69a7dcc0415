"""What can be done with several versions: shown, compared, merged, squashed, pruned, rebased, flattened, compacted."""
