"""Reports: one self-contained HTML file about a build or a training run."""
