"""Outside models of mask-based methods: what is where in a picture, in words or outlines; and the scene itself."""
