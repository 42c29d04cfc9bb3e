"""What a trial is: types, composing, identity, the paper's optima and spaces, a search's best."""
