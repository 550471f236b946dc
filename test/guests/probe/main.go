// Command probe is a WASI guest that does what its arguments say, one after the
// other, and so shows the tests what a guest sees and can do.
package main

import (
	"bufio"
	"crypto/rand"
	"fmt"
	"io"
	"os"
	"sort"
	"strconv"
	"time"
)

func main() {
	args := os.Args[1:]
	next := func() string {
		if len(args) == 0 {
			return ""
		}
		a := args[0]
		args = args[1:]
		return a
	}
	for len(args) > 0 {
		if err := do(next(), next); err != nil {
			fmt.Println("error:", err)
			os.Exit(1)
		}
	}
}

func do(what string, next func() string) error {
	switch what {
	case "args":
		fmt.Printf("args: %q\n", os.Args)
	case "env":
		env := os.Environ()
		sort.Strings(env)
		for _, e := range env {
			fmt.Println("env:", e)
		}
	case "cwd":
		wd, err := os.Getwd()
		fmt.Println("cwd:", wd)
		return err
	case "cat":
		data, err := os.ReadFile(next())
		fmt.Print(string(data))
		return err
	case "write":
		return os.WriteFile(next(), []byte(next()), 0o644)
	case "ls":
		entries, err := os.ReadDir(next())
		for _, e := range entries {
			fmt.Println("entry:", e.Name())
		}
		return err
	case "stdin":
		n := 0
		for s := bufio.NewScanner(os.Stdin); s.Scan(); n++ {
			fmt.Println("stdin:", s.Text())
		}
		fmt.Println("lines:", n)
	case "stderr":
		fmt.Fprintln(os.Stderr, next())
	case "print":
		fmt.Println(next())
	case "burst", "errburst": // that many bytes of output
		n, err := strconv.ParseInt(next(), 10, 64)
		if err != nil {
			return err
		}
		out := os.Stdout
		if what == "errburst" {
			out = os.Stderr
		}
		_, err = io.CopyN(out, zeros{}, n)
		return err
	case "sleep":
		d, err := time.ParseDuration(next())
		if err != nil {
			return err
		}
		began := time.Now()
		time.Sleep(d)
		fmt.Println("slept:", time.Since(began) >= d)
	case "tick": // a number at a time, for ever
		d, err := time.ParseDuration(next())
		if err != nil {
			return err
		}
		for i := 0; ; i++ {
			fmt.Println("tick:", i)
			time.Sleep(d)
		}
	case "now":
		fmt.Println("now:", time.Now().Unix())
	case "random":
		b := make([]byte, 16)
		_, err := rand.Read(b)
		fmt.Printf("random: %x\n", b)
		return err
	case "grow": // that many MiB, touched
		n, err := strconv.Atoi(next())
		if err != nil {
			return err
		}
		b := make([]byte, n<<20)
		for i := 0; i < len(b); i += 4096 {
			b[i] = 1
		}
		fmt.Println("grown:", len(b)>>20)
	case "fill": // a file with that many MiB
		name := next()
		n, err := strconv.Atoi(next())
		if err != nil {
			return err
		}
		f, err := os.Create(name)
		if err != nil {
			return err
		}
		defer f.Close()
		block := make([]byte, 1<<20)
		for range n {
			if _, err := f.Write(block); err != nil {
				return err
			}
		}
		fmt.Println("filled:", n)
	case "garbage": // makes work for the collector, and never calls the host
		var keep [64][]byte
		for i := 0; ; i++ {
			keep[i%len(keep)] = make([]byte, 1<<14)
		}
	case "recurse":
		fmt.Println("depth:", descend(0))
	case "exit":
		n, err := strconv.Atoi(next())
		if err != nil {
			return err
		}
		os.Exit(n)
	case "trap":
		panic("trapped on purpose")
	case "idle":
		for {
			time.Sleep(time.Hour)
		}
	default:
		return fmt.Errorf("unknown: %q", what)
	}
	return nil
}

func descend(n int) int {
	if n < 0 {
		return n
	}
	return descend(n+1) + n
}

type zeros struct{}

func (zeros) Read(p []byte) (int, error) {
	for i := range p {
		p[i] = '0'
	}
	return len(p), nil
}
