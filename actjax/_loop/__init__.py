"""The loops over ponder steps, the one place that loops; private: `actjax.unroll` is its door."""
