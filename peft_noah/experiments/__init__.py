"""The paper's experiments: protocols as data, the suite that runs them, and the tables and figures of its results."""
