"""Building a dataflow: `Dataflow` and the streams that its steps return. It makes a logical graph and runs nothing."""
