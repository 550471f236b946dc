//go:build !embedded

package program

var embedded payload
