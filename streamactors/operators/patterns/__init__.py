"""Patterns: what users write (`pattern`), the automaton (`nfa`), what it keeps (`runs`), and the operator."""
