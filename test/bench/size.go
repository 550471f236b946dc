package main

import "context"

func size(context.Context, *bench) error { return nil }

func sizeTable(*results) string { return "" }
