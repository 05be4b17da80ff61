// TLS server for bench.handshakes: it completes the handshake of each connection, reads to its end and closes it.
//
//	go run handshakes.go PORT CERTIFICATE KEY
package main

import (
	"crypto/tls"
	"io"
	"log"
	"net"
	"os"
)

func main() {
	pair, err := tls.LoadX509KeyPair(os.Args[2], os.Args[3])
	if err != nil {
		log.Fatal(err)
	}
	listener, err := net.Listen("tcp", "127.0.0.1:"+os.Args[1])
	if err != nil {
		log.Fatal(err)
	}
	config := &tls.Config{Certificates: []tls.Certificate{pair}, SessionTicketsDisabled: true}
	for {
		connection, err := listener.Accept()
		if err != nil {
			log.Fatal(err)
		}
		go func() {
			server := tls.Server(connection, config)
			io.Copy(io.Discard, server)
			server.Close()
		}()
	}
}
